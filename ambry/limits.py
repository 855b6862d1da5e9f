"""Every hard limit of the store, with its unit and its reason. docs/operations.md lists them for operators.

A limit is a constant of the product; what an operator may tune lives in config.py. Limits that depend on each
other are checked at import, so that a careless change does not start.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# --- blobs -----------------------------------------------------------------------------------------------------

CHECKSUM_BLOCK_BYTES: Final = 64 * KIB
"""One xxh3-64 for every block of a stored body: small enough to verify a range, large enough to cost 0.01 %."""

CHUNK_BYTES_MAX: Final = 4 * MIB
"""Body of one record. A larger blob is cut into chunks of this size. Bounds the memory of every hop."""

BODY_BYTES_MAX: Final = CHUNK_BYTES_MAX + 64 * KIB
"""Stored body of one record, with room for the frames of compression and encryption around a full chunk."""

BLOB_BYTES_MAX: Final = 5 * 1024 * GIB
"""A composite blob. The manifest tree of two levels reaches further; this is what is tested and promised."""

PROPERTIES_BYTES_MAX: Final = 64 * KIB
"""Encoded properties of one record, user metadata included."""

USER_METADATA_BYTES_MAX: Final = 32 * KIB
"""All names and values of the `x-ambry-um-*` headers of one blob, in bytes of UTF-8."""

KEY_BYTES_MAX: Final = 64
"""Binary blob id in a record. Version 1 has 32 bytes; the rest is room for later versions."""

MANIFEST_ENTRIES_MAX: Final = 64 * KIB
"""Entries of one manifest: 64 Ki chunks of 4 MiB are 256 GiB a leaf, and 20 leaves reach BLOB_BYTES_MAX."""

MANIFEST_CANDIDATES_MAX: Final = 3
"""Manifest ids that an upload reserves, in different partitions, so that one lost partition does not fail it."""

# --- storage ---------------------------------------------------------------------------------------------------

SEGMENT_BYTES_MAX: Final = 2 * GIB
"""A log segment. Offsets in the index have 32 bits."""

SEGMENT_BYTES_DEFAULT: Final = 256 * MIB
"""64 full chunks; small enough that compaction frees space soon."""

SEGMENT_PREALLOCATE_BYTES: Final = 16 * MIB
"""Space is reserved this far ahead of a log's end, so that the file system hands out long extents."""

OPEN_SEGMENTS_MAX: Final = 4096
"""Files of one disk that are kept open, and at most half of what the process may have; others open when used."""

SEGMENT_TAIL_BYTES_MAX: Final = 256 * KIB
"""Records of one log that wait in memory for their write, when the journal has them; written together then."""

TAILS_BYTES_MAX: Final = 32 * MIB
"""The same over all logs of a disk: with thousands of partitions few of them reach their own limit."""

LOG_FAILURES_MAX: Final = 3
"""Logs of a disk that may fail to be written or synced, since its opening, before it takes no more writes."""

JOURNAL_FAILURES_MAX: Final = 3
"""Journals of a disk that may fail and be replaced, since its opening, before it takes no more writes."""

INDEX_FAILURES_MAX: Final = 8
"""Times that a disk's index may fail and be opened again, since its opening, before it takes no more writes. More than
journals: what is missing may be descriptors, of which other work leaves enough another time."""

JOURNAL_BYTES: Final = 256 * MIB
"""Bounds the time of recovery: the journal is read once and its records are written again."""

JOURNAL_BYTES_MIN: Final = 16 * MIB
"""Below this a commit group of full size could fill the journal between two checkpoints."""

JOURNAL_BODY_BYTES_MAX: Final = 256 * KIB
"""Larger bodies are synced in their own log, and only their header and place go through the journal."""

COMMIT_GROUP_BYTES_MAX: Final = 8 * MIB
"""Bytes of one commit group that go through the journal; what is above waits for the next group."""

COMMIT_GROUP_LARGE_BYTES_MAX: Final = 32 * MIB
"""Bodies of one commit group that are synced in their own logs: enough for the disk to work on several at once, and
little enough that the small puts of the group wait for a tenth of a second at most."""

COMMIT_GROUP_RECORDS_MAX: Final = 512
"""Records of one commit group."""

COMMIT_QUEUE_BYTES_MAX: Final = 64 * MIB
"""Bodies that wait for one disk. A full queue is answered with Overloaded, not with memory."""

COMMIT_QUEUE_RECORDS_MAX: Final = 16 * KIB
"""Mutations that wait for one disk."""

REPLICA_WRITABLE_PERCENT: Final = 90
"""A replica that was full takes puts again when compaction has brought it down to this share of its capacity."""

TOMBSTONES_PERCENT_MAX: Final = 10
"""A replica with a larger share of tombstones takes no new blobs any more: they stay for ever, and crowd out blobs."""

HOT_RECORDS_BYTES_MAX: Final = 48 * MIB
"""Verified small records of one disk that are kept in memory; between five and ten thousand of 4 KiB."""

COLD_READ_THREADS: Final = 4
"""Threads of one disk that read what is not in the page cache."""

COLD_READS_MAX: Final = 4096
"""Reads that wait for one disk's threads."""

REPLICAS_PER_DISK_MAX: Final = 2048
"""The checkpoint slot lists every replica's active segment; at 100 GiB a partition this is 200 TiB."""

INDEX_CACHE_BYTES: Final = 64 * MIB
"""Block cache of one disk's index."""

INDEX_MEMTABLE_BYTES: Final = 16 * MIB
"""One memtable of one disk's index. A checkpoint flushes it, so it need not be large."""

SWEEP_MARGIN_MS: Final = 86_400_000
"""The sweeper waits this much longer than a deadline or a retention: far more than clocks differ."""

UNDELETE_MARGIN_MS: Final = SWEEP_MARGIN_MS // 2
"""A deleted blob of several chunks is not read or undeleted longer than this after its retention, half of the time that
the sweeper gives it: what was undeleted in time is known everywhere before the chunks are taken."""

SWEEP_ALWAYS_MAX: Final = 64
"""Chunks that a pass may take whatever share of all they are: a store with few chunks is no cause for alarm."""

SWEEP_UPLOADS_KNOWN_MAX: Final = 16 * KIB
"""Uploads that a pass remembers; beyond it, it asks for their manifests again."""

CHANGES_PER_PAGE_MAX: Final = 1000
"""Entries of one answer to `changes since`."""

USAGE_PER_PAGE_MAX: Final = 1000
"""Rows of one answer to what containers use."""

DISK_RESERVE_BYTES: Final = 256 * MIB
"""Puts are refused below this much free space, the reserve's file included, so that deletes and the index go on."""

INDEX_ROOM_BYTES: Final = 4 * MIB
"""Below this much free space (or an eighth of a smaller reserve) the index is not flushed: checkpoints wait."""

# --- wire ------------------------------------------------------------------------------------------------------

FRAME_HEADER_BYTES_MAX: Final = 1 * MIB
"""msgpack header of one frame; properties and a page of changes fit."""

FRAME_BODY_BYTES_MAX: Final = 16 * MIB
"""Raw body of one frame; a batch of many small blobs fits."""

REQUESTS_PER_CONNECTION_MAX: Final = 1024
"""Requests in flight on one connection between processes; more wait at the sender."""

CONNECTION_WRITE_BUFFER_BYTES: Final = 8 * MIB
"""Above this a sender waits for the peer to read."""

BATCH_ENTRIES_MAX: Final = 1000
"""Blobs of one batch message."""

HANDSHAKE_MS: Final = 5_000
"""From accept to a proved Hello."""

HANDSHAKE_HEADER_BYTES_MAX: Final = 4 * KIB
"""msgpack header of a frame before the peer has proved who it is. Nobody is given more memory on his word."""

NODE_NAME_BYTES_MAX: Final = 256
"""Name of a node, or fingerprint of a cluster, in Hello."""

WIRE_ARRAY_MAX: Final = 8 * KIB
"""Elements of one array in a message: replicas of four full disks. A few bytes cannot claim more."""

ERROR_MESSAGE_CHARACTERS_MAX: Final = 400
"""Message of an error on the wire; the rest is cut. 1000 of them fit the header of one batch answer."""

ERROR_FACTS_BYTES_MAX: Final = 256
"""Encoded facts of an error on the wire; without room for them they are left out."""

REQUESTS_WAITING_MAX: Final = 4096
"""Requests to one datanode that wait for a connection or for room on it; one more is Overloaded."""

REQUESTS_WAITING_BYTES_MAX: Final = 64 * MIB
"""Bodies of those requests."""

CONNECTION_ANSWER_BYTES_MAX: Final = 256 * MIB
"""Bodies that reads in flight on one connection may bring, at worst: 64 of BODY_BYTES_MAX."""

NODE_CONNECTIONS_MAX: Final = 4096
"""Connections from other processes that one datanode keeps; above it new ones are closed."""

PING_AFTER_MS: Final = 10_000
"""A client that has heard nothing for this long asks whether the peer is still there."""

PING_ANSWER_MS: Final = 10_000
"""A peer that has not answered a ping for this long is gone, whatever TCP still believes."""

PEER_SILENT_MS: Final = 60_000
"""A server closes a connection from which nothing came, or to which nothing could be written, for this long."""

RECONNECT_MS_MIN: Final = 50
"""Pause after the first failed attempt to connect; doubled with every further one, with jitter."""

RECONNECT_MS_MAX: Final = 1_000
"""Longest pause between attempts to connect: for so long is a node that is back taken for gone."""

REQUEST_DEADLINE_MS: Final = 30_000
"""Default deadline of a request between processes."""

CLOCK_SKEW_MS_MAX: Final = 3_600_000
"""Assumed bound on clock skew. Datanodes reclaim a day after expiry, far beyond it."""

# --- replication -----------------------------------------------------------------------------------------------

LISTING_ROWS_MAX: Final = 4 * KIB
"""Changes in one answer to a poll, of all its partitions: a quarter of a megabyte, read in a few milliseconds."""

LISTING_PAGE_ROWS_MAX: Final = 512
"""Changes of one partition in an answer, so that one with a long way to go does not push out the others."""

FETCH_BYTES_MAX: Final = 4 * MIB
"""Bodies of one answer to a fetch, the last one not counted: a few groups are under way at a time."""

FETCH_BLOBS_MAX: Final = 512
"""Blobs of one fetch; their records make one commit group."""

FETCH_HEADER_BYTES_MAX: Final = 512 * KIB
"""Properties and vectors of one answer to a fetch, the last one not counted: they are in the frame's header."""

DIGEST_BOUNDS_MAX: Final = 256
"""Bounds of one request for digests."""

DIGEST_ROWS_MAX: Final = 64 * KIB
"""Ids that one request for digests may make a peer look at: about a tenth of a second of one thread."""

SUBSCRIPTIONS_MAX: Final = 512
"""Subscriptions to the feeds of one datanode: two for each peer, and some that were left behind."""

SUBSCRIPTION_SILENT_MS: Final = 60_000
"""A subscription that was not polled for this long is forgotten; its client sends its positions again."""

POLL_PACE_MS: Final = 20
"""A subscription is answered this often at most, whatever the client wishes."""

POLL_HOLD_MS_MAX: Final = 30_000
"""A poll is held open for this long at most: what was missed by a wake-up is found then."""

REPLICATION_OPEN_MAX: Final = 4 * KIB
"""Changes of one partition, read from one peer, that are not settled yet; above it nobody waits any more for a
frontend to bring the bytes."""

REPAIRS_PER_LOOK_MAX: Final = 256
"""Blobs of the repair queue that are looked at together."""

# --- HTTP ------------------------------------------------------------------------------------------------------

HTTP_LINE_BYTES_MAX: Final = 8 * KIB
"""Request line."""

HTTP_HEADER_BYTES_MAX: Final = 64 * KIB
"""All headers of one request."""

HTTP_CONNECTIONS_MAX: Final = 20_000
"""Client connections of one frontend process; above it new ones are answered 503 and closed."""

HTTP_BODY_IDLE_MS: Final = 60_000
"""A client that sends too little or reads nothing for this long in the middle of a body is disconnected."""

HTTP_BODY_BYTES_MIN: Final = 16 * KIB
"""What has to come of a body in HTTP_BODY_IDLE_MS: a byte now and then would hold the memory of a whole chunk. The
slowest modem sends ten times as much."""

HTTP_HEAD_MS: Final = 15_000
"""A request's head has to be there this long after its first byte, or the connection is closed."""

REQUESTS_UNDER_WAY_FAIR: Final = 2048
"""Requests that a process answers at once before each container gets no more than an equal share of them."""

RETRY_AFTER_S_MAX: Final = 3600
"""Longest wait that a refused client is told."""

LANE_BODY_BYTES_MAX: Final = 64 * KIB
"""Bodies that the fast lane answers or stores; larger ones are worth aiohttp's pace and its backpressure."""

LANE_HEAD_BYTES_MAX: Final = 4 * KIB
"""Request heads that the fast lane looks at, and remembers one of for each connection."""

LANE_HELD_BYTES_MAX: Final = 64 * KIB
"""Bytes that wait on one connection behind a request of the fast lane; above it reading stops."""

LANE_BLOCKS_MAX: Final = 4096
"""Rendered header blocks that the fast lane keeps; at most a few MiB."""

RANGES_PER_REQUEST_MAX: Final = 64
"""Byte ranges in one GET; more are answered 416. No overlap is sent twice."""

FORM_FIELDS_MAX: Final = 128
"""Fields of a form before its file; as many as a client has metadata."""

BATCH_IDS_MAX: Final = 10_000
"""Items of one batch over HTTP: 440 KB of ids, 40 MB of blobs of 4 KiB."""

BATCH_WINDOW: Final = 64
"""Blobs of one batch that are asked for together; their bodies take one chunk of memory at most."""

TRANSFER_BYTES_MAX: Final = 192 * MIB
"""Bodies of large blobs in flight in one frontend process, both ways together."""

TRANSFER_QUEUE_MAX: Final = 1024
"""Transfers that wait for their share of TRANSFER_BYTES_MAX; one more is answered 503 with Retry-After."""

READ_PIECE_BYTES: Final = 1 * MIB
"""A GET holds two pieces of this size at most: one at the client's socket, one being read."""

RANGE_DIGEST_BYTES_MAX: Final = 4 * MIB
"""The digest of a range stands before its bytes, so all of them are in memory; larger ranges are sent without one."""

HEAD_DIGEST_BYTES_MAX: Final = 256 * MIB
"""Read for the digest in an answer to HEAD: a few tenths of a second from the page cache."""

TTL_SECONDS_MAX: Final = 100 * 366 * 86_400
"""A longer TTL is a mistake (milliseconds, or a date); for ever is -1."""

HTTP_KEEP_ALIVE_MS: Final = 75_000
"""From the last answer, or from the accept, to a whole request head; then the connection is closed."""

HTTP_BACKLOG: Final = 1024
"""Connections that the kernel may hold while the process is busy."""

HTTP_FIELD_BYTES_MAX: Final = 48 * KIB
"""One header line: user metadata of full size in one value fits, and is judged by its own limit."""

HTTP_FIELDS_MAX: Final = 256
"""Header lines of one request."""

PROPERTY_BYTES_MAX: Final = 1 * KIB
"""One property of a blob that is not user metadata: a content type, a file name, an owner."""

HEDGE_MS_MIN: Final = 2
"""A second replica is asked no earlier than this, however quick the first one was: most of it is our own loop."""

HEDGE_MS_UNKNOWN: Final = 50
"""When a second replica is asked while too little is known of the first."""

HEDGE_MS_MAX: Final = 200
"""A second replica of this datacentre is asked no later than this: p99 stays below 300 ms while a datanode dies."""

HEDGE_REMOTE_MS_MAX: Final = 2_000
"""The same for peers of other datacentres, whose round trip alone may take hundreds of milliseconds."""

HEDGES_IN_A_ROW_MAX: Final = 256
"""Second requests that may be sent at once beyond their share of the reads; more would double an overload."""

HEDGE_SHARE: Final = 0.1
"""Of all reads, how many may ask a second replica in the long run. At the p95 it is one in twenty."""

READS_IN_FLIGHT_MAX: Final = 2
"""Replicas that one read asks at a time."""

READ_ABANDON_MS: Final = 1_000
"""Two replicas that are silent for this long make room for a third, and get their turn again at the end."""

PEER_FAILURES_MAX: Final = 2
"""Requests in a row that failed before a peer is asked last; one may be an accident of one connection."""

PEER_OVERTAKEN_MAX: Final = 8
"""Reads that were overtaken since the peer's last answer, of whatever kind, before it is asked last."""

PEER_QUIET_MS: Final = 500
"""A peer that has answered nothing for this long, while something waits for it, is asked last."""

PUT_QUIET_MS: Final = 1_000
"""A put whose quorum depends on peers that say nothing gives them up after this long, and slips elsewhere."""

PEER_PROBE_MS_MIN: Final = 200
"""A peer that is asked last gets one request as a probe after this time, which doubles while the probes fail."""

PEER_PROBE_MS_MAX: Final = 5_000
"""Longest time between two probes."""

PUT_BURST_MAX: Final = 16
"""Small puts one after the other that go to the same partition, if they come within PUT_BURST_S."""

PUT_BURST_S: Final = 0.001
"""A millisecond: about one turn of the event loop under load."""

FULL_PARTITION_S: Final = 30
"""A partition whose put found no space is passed over for this long."""

REMOTE_PUTS_MAX: Final = 2
"""Replicas of other datacentres that a put tries for a container that wants one of them before it is acknowledged."""

UPLOAD_CHUNKS_IN_FLIGHT_MAX: Final = 2
"""Chunks of one upload that wait for their disks while the next one fills: enough that neither side stands still."""

UPLOAD_GATHER_BYTES_MAX: Final = 256 * KIB
"""Bytes of a chunk that are gathered before it gets a buffer, and memory, for all of CHUNK_BYTES_MAX."""

CHUNK_BUFFERS_KEPT_MAX: Final = 16
"""Chunk buffers kept for the next upload while uploads are under way; afterwards one."""

UPLOAD_DEADLINE_MS: Final = 7 * 86_400_000
"""From the first byte of an upload to its manifest: BLOB_BYTES_MAX at 10 MB/s. Then its chunks may be collected."""

UPLOAD_PARTS_MAX: Final = 10_000
"""Parts of one upload: as in S3. Their rows are read in one transaction when it is completed."""

UPLOAD_PART_BYTES_MAX: Final = 5 * GIB
"""One part: as in S3. Its chunks take 80 KiB of the name store."""

UPLOAD_KEPT_MS: Final = 86_400_000
"""How long a completed upload is remembered, so that whoever missed the answer can ask again."""

UPLOAD_COLLECT_ROWS: Final = 100
"""Uploads, or parts of one, that are collected in one step."""

UPLOAD_LIST_BYTES_MAX: Final = 1 * MIB
"""The list of parts that completes an upload, in JSON: 100 bytes for each."""

UPDATE_CHUNKS_IN_FLIGHT_MAX: Final = 64
"""Chunks of one blob whose TTL is extended at a time: one commit group, without filling a disk's queue."""

RECLAIM_QUEUE_MAX: Final = 64 * KIB
"""Ids of failed puts that wait for their tombstone; what does not fit is left to the sweeper."""

# --- names -----------------------------------------------------------------------------------------------------

NAME_BYTES_MAX: Final = 1024
"""A name, in bytes of UTF-8: as in S3."""

NAME_LIST_COUNT_MAX: Final = 1000
"""Entries of one page of a list: as in Ambry and in S3."""

NAME_LIST_ROWS_MAX: Final = 20_000
"""Rows that one page looks at; a page that meets many expired names ends early and has a token."""

NAME_RETENTION_MS: Final = 7 * 86_400_000
"""How long a version that was replaced or deleted can still be read: as long as a deleted blob can come back."""

NAME_ORPHAN_AGE_MS: Final = 86_400_000
"""A named blob that has no row after this long never gets one: far longer than any upload's last step."""

NAMES_KEPT_MAX: Final = 32 * KIB
"""Names of an embedded store that a process keeps in memory: 20 MiB where names are long."""

NAMES_KEPT_ROWS_MAX: Final = 1000
"""Changed names that are looked at to forget them; after more than that all are forgotten."""

NAME_UPKEEP_MS: Final = 60_000
"""Between two rounds of upkeep of a name store."""

NAME_LEASE_MS: Final = 10 * NAME_UPKEEP_MS
"""How long a process that looks after a name store may be silent before another one does it."""

NAME_COLLECT_ROWS: Final = 200
"""Rows of names that are collected in one step: a few milliseconds of the store."""

NAME_RECORDS_PER_PAGE: Final = 200
"""Records whose properties are read in one step when logs are searched for names."""

NAME_FEED_POLL_MS: Final = 1_000
"""Between two looks at the feed of names of another datacentre that was at its end."""

NAME_FEED_ROWS_MAX: Final = 1000
"""Rows of one answer of the feed of names: 2 MiB where names are long."""

NAME_CHECK_FIRST_BYTES: Final = 256 * KIB
"""A named upload of this size is refused before its body is taken, where that can be seen; below it, the look would
cost more than the body."""

NAME_QUEUE_JOBS_MAX: Final = 8 * KIB
"""Changes that wait for the name store of one process; one more is Overloaded."""

NAME_GROUP_JOBS_MAX: Final = 512
"""Changes of one commit of an embedded name store: about 20 ms of work behind one sync."""

NAME_READERS: Final = 4
"""Threads of one process that read an embedded name store."""

NAME_CONNECTIONS_MAX: Final = 16
"""Connections of one process to a PostgreSQL server; it allows 100 by default."""

NAME_LOCK_WAIT_MS: Final = 5_000
"""How long a change waits for a name store that another process has locked, before it is refused."""

NAME_STATEMENT_MS_MAX: Final = 10_000
"""A statement that a PostgreSQL server has not answered by then is given up."""

NAME_CONNECT_S: Final = 5
"""How long it is tried to reach a PostgreSQL server."""

NAME_CACHE_BYTES: Final = 16 * MIB
"""Page cache of one connection to an embedded name store: the upper levels of its trees, for tens of millions of
names."""

NAME_FOLD_ROWS: Final = 24 * KIB
"""Rows that an embedded name store changes before its log is folded into its file: 64 MiB of log where names come in no
order."""

NAME_LOG_ROWS_MAX: Final = 8 * NAME_FOLD_ROWS
"""Rows after which the writer itself folds a log that never came to rest: half a GiB."""

NAME_MAPPED_BYTES: Final = 1 * GIB
"""How much of an embedded name store is mapped: pages that the system has cached are read without being copied."""

# --- models: what the client library keeps --------------------------------------------------------------------------

MODEL_MANIFEST_BYTES_MAX: Final = 256 * MIB
"""The manifest of a model version, in JSON; a million files of some 200 bytes each."""

MODEL_FILES_MAX: Final = 1_000_000
"""Files of one model version."""

MODEL_EXTENTS_MAX: Final = 16_384
"""Pieces that one file of a model is put together from; a push that would need more stores the file anew."""

MODEL_CHUNK_BYTES: Final = 16 * KIB
"""What a content-defined chunk of a large file has on average; chunks of all versions must be cut alike."""

MODEL_CHUNKED_BYTES_MIN: Final = 16 * MIB
"""Files from this size on are cut into chunks; smaller ones are sent again as a whole."""

MODEL_TABLE_BYTES_MAX: Final = GIB
"""A table of chunks; 30 million of them, as many as a file of 600 GB has."""

TENSORS_HEADER_BYTES_MAX: Final = 100_000_000
"""The header of a safetensors file; the limit of the safetensors library."""

# --- access ----------------------------------------------------------------------------------------------------

ACCOUNT_NUMBER_MAX: Final = 2**32 - 2
"""Numbers of accounts and containers have 32 bits in a blob id; the last one stands for none."""

ACCOUNTS_MAX: Final = 100_000
"""Accounts of a store: every frontend process holds all of them, with their containers."""

ACCOUNTS_COPY_BYTES_MAX: Final = 256 * MIB
"""All accounts, containers and keys as another datacentre takes them over: 100 000 of each are a third of this."""

ACCESS_KEYS_MAX: Final = 100_000
"""Access keys of a store; every frontend process holds all of them, about 1 KiB each."""

CONTAINER_LIST_ITEMS_MAX: Final = 1000
"""Containers of one change, media types of one policy."""

KEY_GRANTS_MAX: Final = 100
"""Containers that one access key lists; more are better granted by account."""

POLICY_TEXT_BYTES_MAX: Final = 1 * KIB
"""One text of a policy or of a key: an origin, a description."""

QUOTA_MAX: Final = 2**62
"""Largest number of a quota."""

ERASURE_DAYS_MAX: Final = 3650
"""Longest time that a container can leave for erasing what was deleted."""

ERASURE_CONTAINERS_MAX: Final = 100_000
"""Containers of one name store that may have such a promise: they fit one message to a datanode."""

ERASURE_TELL_S: Final = 60.0
"""How often a frontend repeats to datanodes which containers are erased: one that started meanwhile learns it."""

SIGNATURE_SKEW_MS: Final = 15 * 60_000
"""A signed request is good for this long before and after its date: what clocks of clients are wrong."""

SIGNED_URL_TTL_S_DEFAULT: Final = 300
"""Life of a signed URL that nobody gave another one, as in Ambry."""

SIGNED_URL_TTL_S_MAX: Final = 7 * 86_400
"""Longest life of a signed URL, as in S3. Longer access is a key's."""

SIGNED_QUERY_PARAMETERS_MAX: Final = 16
"""Parameters of a signed URL."""

BEARER_TOKEN_CHARACTERS_MAX: Final = 256
"""A longer token is none of ours, and not worth its hash."""

ACCESS_POLL_MS: Final = 1_000
"""How often a frontend process looks whether accounts or keys have changed: a key that was removed elsewhere ends
within twice this time."""

USAGE_POLL_MS: Final = 10_000
"""How often a frontend process asks what containers use, if one has a quota of bytes or blobs."""

CLOSING_WAIT_MS: Final = 60_000
"""A container that was given up is emptied this long after that: by then every process knows, and takes no puts."""

CLOSING_ERASURE_DAYS: Final = 7
"""What is dead of a container that was given up is gone from the logs so many days after its retention, also without
`erasureDays`: with a retention of a week its name is free two weeks after the delete, however little it had."""

CLOSING_ROUND_MS: Final = 30_000
"""How often it is looked whether something of a container that was given up is left."""

CLOSING_LEASE_MS: Final = 600_000
"""One process works on what was given up; another one takes over this long after its last round."""

CLOSING_DELETES_MAX: Final = 64
"""Blobs of a container that was given up which are deleted at a time: little beside what clients do."""

JSON_BODY_BYTES_MAX: Final = 1 * MIB
"""Body of a request that is JSON."""

CALLER_CONTAINERS_KEPT_MAX: Final = 4096
"""Containers in which one caller's rights are kept ready; those of others are worked out anew."""

# --- processes -------------------------------------------------------------------------------------------------

METRIC_SERIES_MAX: Final = 4096
"""Series of one metric name: one for each replica of a disk, and room. Labels never come from requests."""

LOG_VALUE_CHARACTERS_MAX: Final = 2048
"""One value of a log line; the rest is cut. Values come from clients, disks stay bounded."""

CERTIFICATE_POLL_MS: Final = 10_000
"""How often a process looks whether its certificates were replaced."""

SECRET_BYTES_MIN: Final = 16
"""A shorter cluster secret is an example that someone forgot to replace."""

PARTITIONS_MAX: Final = 100_000
"""Partitions of one cluster map; a blob id has 32 bits for the number, the map has to fit in memory."""

NODES_MAX: Final = 4096
"""Datanodes of one cluster map; the piece of the layout that lists them must stay well under 1 MB."""

REGISTRY_WAIT_S: Final = 10.0
"""How long one question to ZooKeeper may take before it counts as out of reach."""

REGISTRY_START_S: Final = 20.0
"""How long a process that starts waits for ZooKeeper before it begins with the last map that it knows."""

REGISTRY_SESSION_S: Final = 10.0
"""A process that ZooKeeper has not heard for this long is gone from the list of those that live."""

REGISTRY_LOOK_S: Final = 10.0
"""The layout is looked at this often even if no watch has fired."""

REGISTRY_RETRY_S: Final = 1.0
"""The same while ZooKeeper is out of reach, or has no layout that this process could use."""

JOIN_LOOK_S: Final = 1.0
"""How often a replica that joins looks whether it has caught up."""

MAP_WAIT_S: Final = 2.0
"""How long a request that was refused under an old map waits for a newer one before it gives up."""

REGISTRY_HISTORY_MAX: Final = 1000
"""Changes of the layout that are kept."""

REMOVED_RETENTION_S: Final = 30 * 86_400
"""Replicas that the map does not list any more are kept this long, where their datanode has set them aside."""

PARTITION_BYTES: Final = 100 * GIB
"""Capacity of a partition that nobody gave another one. No minimum for the disk: space is taken as it is filled."""

PARTITIONS_EMBEDDED_DEFAULT_MIN: Final = 4
PARTITIONS_EMBEDDED_DEFAULT_MAX: Final = 64
"""Partitions of a new embedded store. Four, so that several are in use from the first day; more than 64 gain nothing
on one disk, and can be added."""

# Relations that the code leans on.
assert CHUNK_BYTES_MAX % CHECKSUM_BLOCK_BYTES == 0
assert READ_PIECE_BYTES % CHECKSUM_BLOCK_BYTES == 0
assert FRAME_BODY_BYTES_MAX >= 2 * BODY_BYTES_MAX
assert FRAME_HEADER_BYTES_MAX >= 4 * PROPERTIES_BYTES_MAX
assert HANDSHAKE_HEADER_BYTES_MAX >= 4 * NODE_NAME_BYTES_MAX
assert WIRE_ARRAY_MAX >= 4 * REPLICAS_PER_DISK_MAX
assert max(BATCH_ENTRIES_MAX, CHANGES_PER_PAGE_MAX) <= WIRE_ARRAY_MAX
# 400 characters are up to 1600 bytes, but messages of ours are ASCII; a batch that does not fit is refused as a whole.
assert BATCH_ENTRIES_MAX * (ERROR_MESSAGE_CHARACTERS_MAX + ERROR_FACTS_BYTES_MAX + 64) <= FRAME_HEADER_BYTES_MAX
assert CONNECTION_ANSWER_BYTES_MAX >= FRAME_BODY_BYTES_MAX
assert LISTING_PAGE_ROWS_MAX <= LISTING_ROWS_MAX
assert min(BATCH_ENTRIES_MAX, COMMIT_GROUP_RECORDS_MAX) >= FETCH_BLOBS_MAX
assert FETCH_HEADER_BYTES_MAX + PROPERTIES_BYTES_MAX + 256 * FETCH_BLOBS_MAX <= FRAME_HEADER_BYTES_MAX
assert min(PEER_SILENT_MS, SUBSCRIPTION_SILENT_MS) > POLL_HOLD_MS_MAX
assert PEER_SILENT_MS >= 2 * (PING_AFTER_MS + PING_ANSWER_MS)
assert SEGMENT_BYTES_DEFAULT <= SEGMENT_BYTES_MAX < 2**32
# At least 32 full chunks per segment, or compaction would move more than it frees.
assert SEGMENT_BYTES_DEFAULT >= 32 * CHUNK_BYTES_MAX
assert JOURNAL_BYTES_MIN >= 2 * COMMIT_GROUP_BYTES_MAX
assert JOURNAL_BODY_BYTES_MAX <= COMMIT_GROUP_BYTES_MAX
assert BODY_BYTES_MAX <= COMMIT_GROUP_LARGE_BYTES_MAX <= COMMIT_QUEUE_BYTES_MAX
assert PARTITIONS_EMBEDDED_DEFAULT_MAX <= REPLICAS_PER_DISK_MAX
assert USER_METADATA_BYTES_MAX < PROPERTIES_BYTES_MAX
# Sixty-four Ki entries must fit one chunk.
assert MANIFEST_ENTRIES_MAX * 48 <= CHUNK_BYTES_MAX
assert (BLOB_BYTES_MAX // CHUNK_BYTES_MAX) <= MANIFEST_ENTRIES_MAX * MANIFEST_ENTRIES_MAX
