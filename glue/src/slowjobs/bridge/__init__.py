"""The bridge: requests from Kafka to NSQ, under each lane's cap."""
