"""What a shard set S is: its schema, its description, its tables, its pictures. The one door to the product."""
