"""What integration and acceptance tests stand on: real servers as local processes, and the slowjobs processes."""
