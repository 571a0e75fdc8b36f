"""The command line: thin. Parse, call, print."""

from trimtab.cli.app import main as main
