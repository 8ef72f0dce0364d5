"""The kernel's surface: system calls and /proc, synchronous, standard library only, no policy, no trio."""
