"""The intake: from HTTP to Kafka."""
