"""`python -m rmtrain`, which is how `accelerate launch -m rmtrain` starts a process."""

from rmtrain.cli import main

main()
