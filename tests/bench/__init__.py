"""The benchmark: algate and its peers in the same run, in turn. `make bench`."""
