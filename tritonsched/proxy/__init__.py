"""The live driver: the only place where futures and tasks live. A request passes `service` (which
model, mergeable?), `intake` (deadline, class), `driver` (the scheduler's hands), `assembly` (join,
split).
"""
