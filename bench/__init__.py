"""The benchmark: a load generator, a bare aiohttp yardstick, and the jobs that docs/performance.md reports."""
