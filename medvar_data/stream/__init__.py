"""Stream batches from a shard set: a pure function of (shard set, seed, step).

`index` opens the tables, `order` says which row comes when, `read` fetches a row's pixels, `batches` joins
the three.
"""

from medvar_data.shardset.index import ShardSet, open_shard_set
from medvar_data.stream.batches import Batch, Stream, ahead, open_stream, plan, plan_world
from medvar_data.stream.spec import StreamSpec

__all__ = ["Batch", "ShardSet", "Stream", "StreamSpec", "ahead", "open_shard_set", "open_stream", "plan", "plan_world"]
