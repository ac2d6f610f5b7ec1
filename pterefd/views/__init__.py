"""What views of hosts have in common, whatever the host: columns made at first use, sizes, ranking, fault rates."""
