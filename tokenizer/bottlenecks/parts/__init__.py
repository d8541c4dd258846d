"""What several bottlenecks share."""
