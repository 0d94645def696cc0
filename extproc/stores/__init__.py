"""What the adapters of Redis and PostgreSQL share: pools, pipelines, script and query loaders, migrations."""
