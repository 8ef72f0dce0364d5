"""Stateful code execution in kernels that live in the sandbox."""
