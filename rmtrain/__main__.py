"""`python -m rmtrain`, which is how `accelerate launch -m rmtrain` starts a process."""

from rmtrain.cli import main

if __name__ == "__main__":
    main()
