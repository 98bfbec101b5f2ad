"""A network in parts on several machines: device, edge and cloud.

Each tier runs some stages, answers the samples that exit there, and sends the live tensors of the
remaining ones to the next tier.
"""
