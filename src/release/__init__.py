"""From a merged commit to production and back: verify, register, build, deploy, rollback, status."""
