"""`python -m rmtrain`, which launchers use to start a rank."""

from rmtrain.cli import main

if __name__ == "__main__":
    main()
