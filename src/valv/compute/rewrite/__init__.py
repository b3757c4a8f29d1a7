"""What takes people out of files: it runs inside a keyless sandbox, over content that nobody may trust.

Standard library only (and `bcftools`, where the system has it): the sandbox has nothing else of Valv. It reads a job
and plain bytes from its standard input, and writes frames to its standard output; see `job`.
"""
