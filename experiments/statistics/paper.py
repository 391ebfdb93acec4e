"""What the paper reports, to stand beside what is measured here.

Its data are others and the K of its table 1 is not stated: only orders and directions compare.
"""

#: Table 1 by row: Graded Rel, Recall@K, Precision@K.
TABLE1 = {
    "random": (0.102, 0.194, 0.027),
    "clip_text": (0.346, 0.530, 0.164),
    "clip_image": (0.529, 0.666, 0.325),
    "blip_text": (0.328, 0.457, 0.190),
    "blip_image": (0.316, 0.468, 0.178),
    "flava_text": (0.276, 0.446, 0.137),
    "flava_image": (0.393, 0.562, 0.230),
    "dashclip": (0.667, 0.743, 0.515),
}
#: Table 2 by slice and variant: AUC, normalised log loss.
TABLE2 = {
    "all": {
        "dcn": (0.7731, 0.8788),
        "dcn_pq_sim": (0.7741, 0.8781),
        "dcn_pq_sim_history": (0.7787, 0.8747),
        "dcn_pq_sim_history_random": (0.7731, 0.8788),
    },
    "has_purchases": {"dcn": (0.7807, 0.8706), "dcn_pq_sim_history": (0.7876, 0.8653)},
    "no_purchases": {"dcn": (0.7456, 0.9183), "dcn_pq_sim_history": (0.7475, 0.9077)},
}
#: Macro F1 of the probes (5.1, 5.2): BLIP-14M, DashCLIP.
PROBES = {"aisle": (0.707, 0.750), "relevance": (0.476, 0.671)}
#: The features that lead its importances (4.2.3), by the names that they have here.
LEADERS = ("query embedding", "product embedding", "purchase history")
#: What the embeddings may add to the latency of a request.
ADDED_P99_MS = 4.0
