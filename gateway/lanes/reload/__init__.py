"""Changes of a running gateway: of its configuration, and of its models to better bundles."""
