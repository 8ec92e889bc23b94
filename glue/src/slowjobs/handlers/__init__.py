"""Handlers that come with slowjobs, each in its pool's own environment: docs/handlers.md says what it needs there.

Of slowjobs they import ``outcomes`` and each other alone: the glue's libraries are not installed there.
"""
