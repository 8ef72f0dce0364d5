"""Who may use the daemon, and how much of it: API keys and quotas."""
