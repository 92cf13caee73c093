"""What lies under the lens: cultures that live, or recorded fields."""
