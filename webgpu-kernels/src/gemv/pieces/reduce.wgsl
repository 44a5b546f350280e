    // Statements: define `total`, in lane m * ROWS + r the sum of sum$m_$r over the team. With CLUSTER_TOTALS each cluster has all of
    // them. With SCALED they are divided by the RMS. With PAIRS `other` is the total of the lane with the other row.
#ifdef TEAMS
#include gemv/reduce_in_cluster
#else
#ifdef BUTTERFLY
#include gemv/reduce_over_clusters
#else
#include gemv/reduce_in_memory
#endif
#endif
