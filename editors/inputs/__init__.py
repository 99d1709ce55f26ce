"""Edits from what people painted: pictures, frames, documents, flat clips."""
