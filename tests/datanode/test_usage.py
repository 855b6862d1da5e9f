"""What containers use: pages in order, exact after every commit group, whatever was deleted."""

from ambry.blob.requests import Change, ContainerUsage, UsageRequest
from ambry.datanode.usage import usage_page
from tests.storage.engine import World, blob_id, body_of, put, update


def test_pages_follow_each_other_and_add_up_to_what_is_stored() -> None:
    world = World()
    world.open()
    world.commit([put(blob_id(n), body_of(n, 100 + n)) for n in range(20)])
    world.commit([update(blob_id(n), Change.DELETE, time_ms=world.clock.now_ms()) for n in range(5)])
    whole = usage_page([world.store], UsageRequest(None, 1000))
    assert whole.is_last
    assert sum(row.live_count for row in whole.rows) == 15
    assert sum(row.live_bytes for row in whole.rows) == sum(100 + n for n in range(5, 20))
    assert sum(row.dead_count for row in whole.rows) == 5
    assert sum(row.dead_bytes for row in whole.rows) == sum(100 + n for n in range(5))
    keys = [(row.partition, row.account, row.container) for row in whole.rows]
    assert keys == sorted(set(keys))
    rows: list[ContainerUsage] = []
    after = None
    while True:
        page = usage_page([world.store], UsageRequest(after, 1))
        rows += page.rows
        if page.is_last:
            break
        after = (page.rows[-1].partition, page.rows[-1].account, page.rows[-1].container)
    assert tuple(rows) == whole.rows
    assert usage_page([world.store], UsageRequest(keys[-1], 10)) == usage_page([], UsageRequest(None, 10))
