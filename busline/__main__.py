"""`python -m busline` is the command `busline`."""

from busline.cli import main

if __name__ == "__main__":
    main()
