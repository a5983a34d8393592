"""The fixtures `cluster` (two nodes on loopback addresses) and `any_cluster` (those, and in network namespaces)."""

from tests.coordinator.cluster import any_cluster, cluster

__all__ = ["any_cluster", "cluster"]
