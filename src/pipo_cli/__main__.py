"""`python -m pipo_cli`."""

from pipo_cli.app import main

main()
