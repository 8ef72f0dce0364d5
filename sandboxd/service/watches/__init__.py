"""What happens to the files of a sandbox, told to whoever asked."""
