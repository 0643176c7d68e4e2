"""Writes order.txt: leaves, cuts and subtrees as the specification's program gives them.
usage: python3 make_order.py PATH/TO/order_of_sums.py > order.txt      (numpy needed here, not by the tests)

Lines:  heads N_HEADS N_KV | columns N_IN SUPER_BLOCK | vocabulary V     a shape
        leaves END END …                                                 one past each leaf's last unit
        cut SHARE:SHARE… LO-HI LO-HI …                                    leaves of each rank
        nodes A-B,A-B / A-B / …                                           maximal subtrees of each rank ("-": none)
"""
import importlib.util
import sys

spec = importlib.util.spec_from_file_location("order_of_sums", sys.argv[1])
order = importlib.util.module_from_spec(spec)
spec.loader.exec_module(order)

HEADS = [(64, 8), (64, 4), (9, 3), (15, 5), (64, 1), (32, 32), (7, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (8, 8), (16, 2), (20, 20), (24, 4), (24, 8), (32, 4), (32, 8),
         (32, 16), (40, 8), (40, 40), (48, 8), (48, 48), (64, 2), (64, 64), (96, 8), (96, 96), (128, 8), (128, 1), (128, 128), (10, 2), (12, 4), (14, 2), (14, 7), (26, 13), (39, 13),
         (6, 6), (11, 11), (12, 12), (25, 5), (35, 5), (21, 7), (56, 7), (36, 9)]
COLUMNS = [32, 33, 63, 64, 65, 96, 100, 128, 160, 191, 192, 255, 256, 257, 320, 352, 384, 448, 512, 576, 640, 704, 768, 832, 1000, 1024, 1408, 1536, 2048, 2560, 2880, 3072, 4096,
           5120, 5632, 8192, 8960, 9728, 11008, 12288, 14336, 17408, 18432, 18944, 21504, 28672, 53248]
VOCABULARIES = [1, 31, 32, 33, 131, 1003, 32000, 49152, 128256, 129280, 151936, 201088, 262144]
SHARES = [[1], [1, 1], [1, 1, 1], [1, 1, 1, 1], [5, 3], [1, 0, 2], [0, 1], [3, 1, 0, 2, 5]]


def show(leaves):
    print("leaves", *(hi for _, hi in leaves))
    n = len(leaves)
    for shares in SHARES:
        ranges = order.cut(n, shares)
        print("cut", ":".join(map(str, shares)), *(f"{lo}-{hi}" for lo, hi in ranges))
        print("nodes", " / ".join(",".join(f"{a}-{b}" for a, b in order.subtrees(lo, hi, n)) or "-" for lo, hi in ranges))


for heads, kv in HEADS:
    print("heads", heads, kv)
    show(order.leaves_heads(heads, kv))
for n in COLUMNS:
    for super_block in ([0, 1] if n >= 2880 else [0]):
        print("columns", n, super_block)
        show(order.leaves_columns(n, bool(super_block)))
for v in VOCABULARIES:
    print("vocabulary", v)
    show(order.slices_vocabulary(v))
