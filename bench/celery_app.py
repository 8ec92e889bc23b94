"""The task as one of Celery. A task is kept until it has ended, as slowjobs does; all else is as it comes."""

from __future__ import annotations

from typing import Any

import celery
import noop

app = celery.Celery("bench")
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=1)


@app.task
def work(seconds: float) -> dict[str, Any]:
    """Work for ``seconds``."""
    return noop.work(seconds)
