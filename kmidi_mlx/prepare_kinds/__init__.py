"""What `kmidi prepare` can prepare: one module a kind, which adds its own sub-command."""
