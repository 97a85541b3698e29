"""Draws a small data set of circuit boards: ``python -m data.synthetic --output FOLDER``."""

from data.boards.synthetic import main

if __name__ == "__main__":
    main()
