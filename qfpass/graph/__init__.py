"""From a module to an FX graph, to attention records, to a graph that works on stores."""
