"""The commands of `algate`, one file each."""
