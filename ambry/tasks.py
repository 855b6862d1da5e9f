"""The end of a background task. Knows nothing of what tasks do."""

import asyncio
import contextlib
from typing import Any


async def end_task(task: asyncio.Task[Any] | None) -> None:
    """Cancel a task and wait for its end; what it raised instead of ending is raised. Nothing for None."""
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
