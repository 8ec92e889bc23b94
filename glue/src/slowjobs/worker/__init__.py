"""The worker: requests from NSQ through a handler, in slots. Its half of a handler's process is here, too."""
