"""Names of the captioners that are shipped; apart from those of other doors, since a program's code is what it names."""

CAPTIONS = {
    "facts": "likeness.captions.measured:FactsCaptioner",
    "transformers": "likeness.captions.local:TransformersCaptioner",
    "endpoint": "likeness.captions.endpoint:EndpointCaptioner",
}
"""Name → `module:Class`."""
