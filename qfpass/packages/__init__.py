"""Packages: a compiled decoder's graphs as files of AOTInductor, which run without a trace or a compiler.

manifest: what a folder holds, as JSON. programs: the graphs that are exported, with inputs that show their
shapes. export: writes a folder. graphs: the callables of a folder, in the place of `lowering.Graphs`.
"""
