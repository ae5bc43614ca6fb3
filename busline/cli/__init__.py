"""The command line: `busline worker|call|send|publish|dlq|handlers`. Nothing here is imported by `import busline`."""

from busline.cli.app import main

__all__ = ["main"]
