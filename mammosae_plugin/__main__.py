"""`python -m mammosae_plugin` is the `mammosae` command."""

from mammosae_plugin.cli import main

if __name__ == "__main__":
    main()
