"""Start a Ray cluster on this machine for tests of `tune/run.py --address`: two nodes, and a head without CPU.

    python tests/support/two_nodes.py [CPUs of a node]

Ray reserves this number of CPUs, 1 by default, whatever the machine has.
The program prints one line of JSON: {"address": address of the cluster, "metrics": URLs of the nodes' metrics}. A line
on stdin kills the node on which a trial runs, as a power loss would. The end of stdin stops the cluster. The cluster
has its own process, so that it leaves nothing in the process of the tests.
"""

import json
import sys

import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster


def main() -> int:
    answers, sys.stdout = sys.stdout, sys.stderr  # Ray prints messages about the killed node to stdout
    quick = {"metrics_report_interval_ms": 1000}  # the default shows a gauge only after 10 s
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": quick}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=int(sys.argv[1]) if sys.argv[1:] else 1) for _ in range(2)]
    ray.init(cluster.address, log_to_driver=False)
    ports = [f"http://{n['NodeManagerAddress']}:{n['MetricsExportPort']}/metrics" for n in ray.nodes()]
    print(json.dumps({"address": cluster.address, "metrics": ports}), file=answers, flush=True)
    for _ in sys.stdin:
        [where] = {a["Address"]["NodeID"] for a in actors().values() if a["State"] == "ALIVE"}
        [node] = [n for n in nodes if n.node_id == where]
        cluster.remove_node(node, allow_graceful=False)
        print("killed", file=answers, flush=True)
    ray.shutdown()
    cluster.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
