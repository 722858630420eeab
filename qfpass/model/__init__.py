"""The object that users hold: called like the original model, it runs the compiled decoder on sessions.

attach: make that object. compiled_decoder: its class, with forward and session. pool: many conversations,
stepped together. generation: transformers' generate on sessions; continuation: which of generate's ids are
new. check_inputs: check a call's arguments. changes: compile again after the original has changed. returned:
outputs as the original returns them.
"""
