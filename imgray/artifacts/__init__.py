"""Artifacts: folders on disk or in S3 whose manifest, written last, digests every file."""
