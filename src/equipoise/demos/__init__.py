"""Built-in demonstrations: what `equipoise demo` trains, and what it says of it."""
