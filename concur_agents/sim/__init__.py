"""The embedded engine: a KV cache, a scheduler, workloads and a runner, all in virtual time."""
