"""The HTTP server: one file per wire protocol over one internal form, and what all of them share.

A request passes `app` (routes), `guard` (who may ask), `body` (JSON, hostile until checked), a protocol file (to a
ChatRequest), `service` (model, queue, answer) and the protocol file again (Events to the wire). Protocol files see
ChatRequest and Event, never tokens.
"""
