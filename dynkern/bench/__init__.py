"""What ``dynkern bench`` runs: latency against width and against sparsity, beside named baselines.

``cases`` lists what is measured, ``peers`` the baselines, ``timer`` how time is taken, ``run`` checks and times every
point, ``results`` is the file that comes out, ``report`` and ``plots`` show it and read nothing else.
"""
