"""What is shipped: it has to work where there is no checkout."""
