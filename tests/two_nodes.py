"""Two Ray nodes of one CPU each on this machine, for the tests of `tune/run.py --address`.

    python tests/two_nodes.py        prints one line of JSON, {"address", "metrics"}; a line on its input kills the
                                     second node as a power cut would, the end of its input ends both

A process of its own: what Ray keeps of a cluster in the one that made it does not outlive a test otherwise.
"""

import json
import sys

import ray
from ray.cluster_utils import Cluster


def main() -> int:
    quick = {"metrics_report_interval_ms": 1000}  # else 10 s until a gauge is seen
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": quick}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=1)
    ray.init(cluster.address, log_to_driver=False)
    ports = [f"http://{n['NodeManagerAddress']}:{n['MetricsExportPort']}/metrics" for n in ray.nodes()]
    ray.shutdown()
    print(json.dumps({"address": cluster.address, "metrics": ports}), flush=True)
    for _ in sys.stdin:
        cluster.remove_node(second, allow_graceful=False)
        print("killed", flush=True)
    cluster.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
